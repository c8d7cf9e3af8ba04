"""What a recipe will need before it runs (`plan`), and what it took on this machine (`bench`)."""
