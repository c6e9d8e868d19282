// Shim over liburing (https://github.com/axboe/liburing).
#pragma once
#include <liburing.h>
