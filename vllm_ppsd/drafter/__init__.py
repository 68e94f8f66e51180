"""What drafts: the exit head, or recorded output in its place, behind one interface."""
