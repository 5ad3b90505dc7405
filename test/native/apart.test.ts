/**
 * Runs the C++ unit tests of making system calls in processes of their own (apart_test.cc), once under the address sanitizer and once under the thread sanitizer: those
 * processes run on our memory.
 */
import { testSanitized } from '../support/sanitized.js'

testSanitized('calls and closing apart', ['test/native/apart_test.cc', 'native/apart.cc'], 20)
