"""The papers' experiments, one entry each: tables beside the papers' own figures, and pictures."""
