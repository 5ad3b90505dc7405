// Symbols that the headers of a new compiler refer to and an old system does not have. With these, a binary that was built on
// Debian 12 (GCC 12, glibc 2.36) loads from GLIBC 2.28 and GLIBCXX 3.4.25 on: Debian 10, RHEL 8, Ubuntu 20.04. exports.map keeps them to
// ourselves. The versions of pthread functions are in thread.cc.

#include <cstdlib>
#include <new>

#if defined(__GLIBC__)

// glibc 2.32. std::shared_ptr asks it whether it may count without atomic instructions; the answer "no" is always right.
extern "C" char __libc_single_threaded;
char __libc_single_threaded = 0;

#endif

#if defined(__GLIBCXX__) && _GLIBCXX_RELEASE >= 11

// GLIBCXX_3.4.29. A container was asked for more elements than the address space holds; without exceptions there is only one way out.
namespace std {
void __throw_bad_array_new_length() { std::abort(); }
}  // namespace std

#endif
