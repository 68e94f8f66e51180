"""What every stage did when: recorded in the workers, drawn for people."""
