"""Section 3.1: from raw pages to documents worth training on."""
