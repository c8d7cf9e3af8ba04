"""Plans the memory of a recipe before it runs (`planner`), and measures a few of its steps here (`bench`)."""
