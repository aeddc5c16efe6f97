"""What the command line does beside running: tables, figures, doctor, compare."""
