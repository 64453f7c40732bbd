"""What tests share; none of it is collected."""
