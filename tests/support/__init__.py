"""What several tests need: small models and files, planted judges, a server that misbehaves, workers."""
