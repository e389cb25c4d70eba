"""Here so that this folder is importable: `from servers import Server, running`."""
