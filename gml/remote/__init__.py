"""Work on the machines of a node over ssh: commands, code, data, detached jobs."""
