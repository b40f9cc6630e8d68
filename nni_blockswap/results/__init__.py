"""What a search found, on disk: journal, ranking, TensorBoard, tables."""
