"""schedule → C: the host program, text made to be read (`smc compile --emit c`)."""
