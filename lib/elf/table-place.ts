/**
 * Where a symbol table is in its file, whether its section says so or what the dynamic loader goes by.
 */

/** A range of the file. */
export interface Piece {
  readonly offset: bigint
  readonly bytes: number
}

/** A symbol table, and what belongs to it. */
export interface SymbolTable {
  readonly kind: 'symtab' | 'dynsym'
  readonly offset: bigint
  readonly count: number
  readonly names: Piece
  /** `numbers`: a version number a symbol; `definitions`: what the numbers mean. `null` if the file defines no versions. */
  readonly versions: { readonly numbers: Piece; readonly definitions: Piece } | null
}
