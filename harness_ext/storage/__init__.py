"""Folders that survive a kill: run directories, what a long calculation goes on from, and where caches lie."""
