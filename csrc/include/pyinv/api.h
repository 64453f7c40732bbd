// Marks the symbols that the shared library exports. All others are hidden.
#pragma once

#ifdef _WIN32
#ifdef PYINV_BUILDING  // defined while pyinv's own libraries are compiled
#define PYINV_API __declspec(dllexport)
#else
#define PYINV_API __declspec(dllimport)
#endif
#else
#define PYINV_API __attribute__((visibility("default")))
#endif
