"""What a trained model is worth: `dmt-ds evaluate`, `knn` and `judge`."""
