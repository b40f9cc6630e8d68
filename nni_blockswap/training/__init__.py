"""Training of students and teachers, on Lightning."""
