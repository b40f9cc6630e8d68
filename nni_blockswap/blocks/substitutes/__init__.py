"""What can stand in a block's place, a file a family."""
