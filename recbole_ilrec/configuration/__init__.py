"""What was asked for: YAML, command line, RecBole's option bag and the typed settings made of it."""
