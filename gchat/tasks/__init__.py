"""Tasks: items that become conversations, and grades of the answers to them."""
