// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// A contract with one of everything a development node has to get right. Used by the node's tests only.
contract Probe {
    struct Item {
        string name;
        uint256 amount;
    }

    event Deposited(address indexed sender, uint256 indexed mark, string note, uint256 amount);

    error TooLittle(address sender, uint256 sent, uint256 wanted);

    mapping(address => uint256) public balances;
    uint256 public counter;
    uint256 public immutable unlockTime;
    Item[] private items;

    constructor(uint256 lock) {
        unlockTime = block.timestamp + lock;
    }

    function deposit(uint256 mark, string calldata note) external payable {
        if (msg.value < 1000) revert TooLittle(msg.sender, msg.value, 1000);
        balances[msg.sender] += msg.value;
        items.push(Item(note, msg.value));
        emit Deposited(msg.sender, mark, note, msg.value);
    }

    function withdraw() external {
        require(block.timestamp >= unlockTime, "still locked");
        uint256 amount = balances[msg.sender];
        balances[msg.sender] = 0;
        payable(msg.sender).transfer(amount);
    }

    function count() external returns (uint256) {
        counter += 1;
        return counter;
    }

    function divide(uint256 by) external pure returns (uint256) {
        return 1 / by;
    }

    function spin() external pure {
        uint256 n;
        while (true) {
            unchecked {
                n++;
            }
        }
    }

    function dive(uint256 depth) external returns (uint256) {
        if (depth == 0) return gasleft();
        return this.dive(depth - 1);
    }

    function all() external view returns (Item[] memory) {
        return items;
    }

    function now_() external view returns (uint256, uint256) {
        return (block.number, block.timestamp);
    }

    function hashOf(uint256 number) external view returns (bytes32) {
        return blockhash(number);
    }
}
