"""What holds no examples and needs Sphinx, which comes with the extra `docs`, is not collected by pytest."""

collect_ignore = ["book.py", "conf.py"]
