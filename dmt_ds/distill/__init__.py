"""The paper in plain torch: fusion of teachers, the two losses, their objective; knows no teacher, engine or config."""
