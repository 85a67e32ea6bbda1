"""What a text tells by itself: its plain form, its language, whose words it repeats."""
