"""What reviewers approved becomes champion, as a task of a pipeline."""
