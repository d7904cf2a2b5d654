"""What no policy can beat: the clairvoyant router and lower bounds."""
