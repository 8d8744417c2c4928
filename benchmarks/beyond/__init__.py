"""Tasks beyond face forgery that hang on faint, abnormal clues: manipulation localisation, camouflage, spoofing."""
