"""One file a command, each with its page (``PAGE``) and what it does (``run``)."""
