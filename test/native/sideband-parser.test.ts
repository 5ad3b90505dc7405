/**
 * Runs the C++ unit tests of the side band's filter and parser (sideband_test.cc) under the sanitizers: rings with records that the kernel writes seldom, or never.
 */
import { testSanitized } from '../support/sanitized.js'

testSanitized('the side band', ['test/native/sideband_test.cc', 'native/sideband.cc'], 12)
