"""Tasks that learn labels, maps and boxes: their images, models, scores and pictures."""
