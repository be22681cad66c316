"""Pictures that people look at. Nothing but the commands imports this room."""
