"""ChatCORE: tasks asked as conversations, by scoring and by the answers that are written."""
