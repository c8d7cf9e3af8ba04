"""The trainers of TRL on the shared base model."""
