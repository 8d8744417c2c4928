"""Tasks beyond face forgery with faint, abnormal clues: manipulation localisation, camouflage and spoofing."""
