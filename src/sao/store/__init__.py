"""The run folder on disk: files, stages, manifest."""
