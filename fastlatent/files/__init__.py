"""Files as they are read and written, whatever they are for."""
