/* version.c - the one object that knows the version (the Makefile hands it over). */
#include "batchd/version.h"

const char VERSION_TEXT[] = BATCHD_VERSION;
