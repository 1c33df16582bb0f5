"""The method: the table of steps, who does what in a round, and the finished records joined."""
