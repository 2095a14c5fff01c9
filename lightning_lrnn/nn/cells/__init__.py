"""One file for each recurrent layer: its equations."""
