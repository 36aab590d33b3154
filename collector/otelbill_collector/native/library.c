/* Says what the library was built from, so that a stale one is never loaded. */
#include "ob.h"

OB_API const char *ob_sources(void) { return OB_SOURCES; }
