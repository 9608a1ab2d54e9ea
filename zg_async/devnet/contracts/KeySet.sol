// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// A list of distinct words with constant-time lookup. Removing moves the last word into the gap.
library KeySet {
    struct Set {
        bytes32[] words;
        mapping(bytes32 word => uint256 place) places; // index + 1; 0 is absent
    }

    function add(Set storage set, bytes32 word) internal returns (bool) {
        if (set.places[word] != 0) return false;
        set.words.push(word);
        set.places[word] = set.words.length;
        return true;
    }

    function remove(Set storage set, bytes32 word) internal returns (bool) {
        uint256 place = set.places[word];
        if (place == 0) return false;
        uint256 last = set.words.length;
        if (place != last) {
            bytes32 moved = set.words[last - 1];
            set.words[place - 1] = moved;
            set.places[moved] = place;
        }
        set.words.pop();
        delete set.places[word];
        return true;
    }

    function has(Set storage set, bytes32 word) internal view returns (bool) {
        return set.places[word] != 0;
    }

    function size(Set storage set) internal view returns (uint256) {
        return set.words.length;
    }

    /// The words from `offset`, at most `limit` of them, and how many there are in all.
    function slice(Set storage set, uint256 offset, uint256 limit)
        internal
        view
        returns (bytes32[] memory page, uint256 total)
    {
        total = set.words.length;
        if (offset >= total) return (page, total);
        uint256 end = offset + limit;
        if (end > total) end = total;
        page = new bytes32[](end - offset);
        for (uint256 i; i < page.length; ++i) page[i] = set.words[offset + i];
    }
}

function addressWord(address account) pure returns (bytes32) {
    return bytes32(uint256(uint160(account)));
}

function wordAddress(bytes32 word) pure returns (address) {
    return address(uint160(uint256(word)));
}
