"""Shows in a browser how a scene is fitted; `__main__.py` is the command."""
