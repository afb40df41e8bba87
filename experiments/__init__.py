"""What averaging does to accuracy: questions, protocols written before the runs, and their results. See README.md."""
