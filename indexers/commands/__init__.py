"""The commands of the write side; `yeoul.py` puts them beside the others."""
