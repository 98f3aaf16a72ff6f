"""A long job: its processes, the signals it hears, how far it is and how it ends."""
