/**
 * What can become of hits besides being added up, when none of it has happened.
 */
export const NOTHING_ELSE = {
  filtered: 0,
  lost: 0,
  lostUnreadable: 0,
  lostContended: 0,
  lostStarts: 0,
  unfinished: 0,
  abandoned: 0,
  cutOff: 0,
  unmatched: 0,
  begunUnseen: 0,
}
