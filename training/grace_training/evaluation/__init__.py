"""What a trained model is worth: quality on held-out sets, and whether it still writes."""
