// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// A Merkle tree that grows at its right end by aligned subtrees; what is skipped and what is to come is zero sectors.
library FlowTree {
    struct Tree {
        uint256 length; // in sectors
        bytes32[64] peaks; // the root of the full subtree of height h, where bit h of length is set
    }

    /// keccak256 of 256 zero bytes.
    bytes32 internal constant EMPTY = 0xd397b3b043d87fcd6fad1291ff0bfd16401c274896d8c63a923727f077b8e0b5;

    /// Position 0 holds a zero leaf, for ever.
    function start(Tree storage tree) internal {
        tree.length = 1;
    }

    /// Fill up with zero sectors until a subtree of this height may begin.
    function align(Tree storage tree, uint256 height) internal {
        uint256 length = tree.length;
        uint256 rest = length & ((1 << height) - 1);
        if (rest == 0) return;
        bytes32 node = _fold(tree, rest, height);
        tree.length = length - rest;
        add(tree, node, height);
    }

    /// Add a subtree; the length must be a multiple of its size.
    function add(Tree storage tree, bytes32 node, uint256 height) internal {
        uint256 length = tree.length;
        uint256 place = height;
        for (; (length >> place) & 1 != 0; ++place) node = _join(tree.peaks[place], node);
        tree.peaks[place] = node;
        tree.length = length + (1 << height);
    }

    /// The root of the smallest full tree that holds everything.
    function root(Tree storage tree) internal view returns (bytes32) {
        uint256 length = tree.length;
        uint256 height = 0;
        while (1 << height < length) ++height;
        return length == 1 << height ? tree.peaks[height] : _fold(tree, length, height);
    }

    /// The subtree of this height whose first sectors are the peaks of `bits`, and whose others are zero.
    function _fold(Tree storage tree, uint256 bits, uint256 height) private view returns (bytes32 node) {
        bytes32 zero = EMPTY;
        node = zero;
        bool begun;
        for (uint256 h = 0; h < height; ++h) {
            if ((bits >> h) & 1 == 0) {
                if (begun) node = _join(node, zero);
            } else {
                node = begun ? _join(tree.peaks[h], node) : _join(tree.peaks[h], zero);
                begun = true;
            }
            zero = _join(zero, zero);
        }
    }

    function _join(bytes32 left, bytes32 right) private pure returns (bytes32 joined) {
        assembly {
            mstore(0, left)
            mstore(32, right)
            joined := keccak256(0, 64)
        }
    }
}
