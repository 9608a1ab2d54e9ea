// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

interface IBeacon {
    function implementation() external view returns (address);
}

/// Says which code the proxies run; its owner may change it.
contract UpgradeableBeacon is IBeacon {
    address public owner;
    address public implementation;

    event OwnershipTransferred(address indexed previousOwner, address indexed newOwner);
    event Upgraded(address indexed implementation);

    constructor(address first) {
        _setImplementation(first);
        emit OwnershipTransferred(address(0), msg.sender);
        owner = msg.sender;
    }

    modifier onlyOwner() {
        require(msg.sender == owner, "Ownable: caller is not the owner");
        _;
    }

    function upgradeTo(address next) external onlyOwner {
        _setImplementation(next);
        emit Upgraded(next);
    }

    function transferOwnership(address newOwner) external onlyOwner {
        require(newOwner != address(0), "Ownable: new owner is the zero address");
        emit OwnershipTransferred(owner, newOwner);
        owner = newOwner;
    }

    function _setImplementation(address next) private {
        require(next.code.length != 0, "UpgradeableBeacon: implementation is not a contract");
        implementation = next;
    }
}

/// Runs the beacon's code on its own storage and money.
contract BeaconProxy {
    /// EIP-1967: keccak256("eip1967.proxy.beacon") - 1
    bytes32 private constant BEACON_SLOT = 0xa3f0ad74e5423aebfd80d3ef4346578335a9a72aeaee59ff6cb3582b35133d50;

    event BeaconUpgraded(address indexed beacon);

    constructor(address beacon, bytes memory data) payable {
        require(beacon.code.length != 0, "BeaconProxy: beacon is not a contract");
        assembly {
            sstore(BEACON_SLOT, beacon)
        }
        emit BeaconUpgraded(beacon);
        if (data.length != 0) {
            (bool done, bytes memory result) = IBeacon(beacon).implementation().delegatecall(data);
            if (!done) {
                assembly {
                    revert(add(result, 32), mload(result))
                }
            }
        }
    }

    receive() external payable {
        _forward();
    }

    fallback() external payable {
        _forward();
    }

    function _forward() private {
        address beacon;
        assembly {
            beacon := sload(BEACON_SLOT)
        }
        address target = IBeacon(beacon).implementation();
        assembly {
            calldatacopy(0, 0, calldatasize())
            let done := delegatecall(gas(), target, 0, calldatasize(), 0, 0)
            returndatacopy(0, 0, returndatasize())
            switch done
            case 0 { revert(0, returndatasize()) }
            default { return(0, returndatasize()) }
        }
    }
}
