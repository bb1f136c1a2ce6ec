"""`gchat serve`: trained runs, and other servers, behind OpenAI's protocol."""
