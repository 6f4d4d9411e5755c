"""Measures of a super-resolved image: against the truth, against its own scan, and of its grid."""
