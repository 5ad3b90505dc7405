/**
 * Runs the C++ unit tests of the counter's store (counter_store_test.cc), once under the address sanitizer and once under the thread sanitizer. There the
 * program's threads count on a counter in their own process while it is claimed and released.
 */
import { testSanitized } from '../support/sanitized.js'

testSanitized("the counter's store", ['test/native/counter_store_test.cc', 'native/counter_store.cc', 'native/vma.cc'], 21)
